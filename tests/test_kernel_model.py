import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn (extra profile)")

from maenas.errors import ProfileError
from maenas.latency.kernel_model import UNSEEN_FORM_SIGMA, KernelModel, fit_kernel_model
from maenas.lowering.op import Op, conv, glue

NOISE = 0.02


def device_ms(op: Op) -> float:
    """A device that rounds channels up to eights, is slow on depthwise kernels, and needs 10 us to start."""
    pixels = op.out_size[0] * op.out_size[1]
    taps = op.kernel_size**2 * (1 if op.depthwise else -(-op.in_channels // 8) * 8)
    work = 2 * taps * (-(-op.out_channels // 8) * 8) * pixels if op.kind == "conv" else 0
    values = op.in_elements + op.out_elements * (1 + op.residual) + op.weights
    return 0.01 + work / (2e7 if op.depthwise else 2e8) + 4 * values / 2e7


def random_op(rng: np.random.Generator) -> Op:
    side = int(rng.choice([10, 20, 40, 80]))
    in_channels, out_channels = (int(8 * np.round(np.exp(rng.uniform(0, np.log(48))))) for _ in range(2))
    draw = rng.random()
    if draw < 0.15:
        kind = ("pool", "concat", "add", "resize", "mul", "se", "slice")[int(rng.integers(7))]
        return glue(kind, in_channels, (side, side), name="op", stage="neck")
    depthwise = draw < 0.3
    return conv(
        in_channels,
        in_channels if depthwise else out_channels,
        (side, side),
        kernel_size=3 if depthwise else int(rng.choice([1, 3])),
        stride=int(rng.choice([1, 2])),
        depthwise=depthwise,
        residual=bool(rng.random() < 0.3) and not depthwise,
        activation="relu",
        name="op",
        stage="s",
    )


def campaign(num: int, seed: int) -> tuple[list[Op], np.ndarray]:
    rng = np.random.default_rng(seed)
    ops = [random_op(rng) for _ in range(num)]
    true = np.array([device_ms(op) for op in ops])
    return ops, true * np.exp(rng.normal(0, NOISE, num))


@pytest.fixture(scope="module")
def measured() -> tuple[list[Op], np.ndarray]:
    return campaign(300, 1)


@pytest.fixture(scope="module")
def model(measured) -> KernelModel:
    return fit_kernel_model(*measured, folds=2)


def body(in_channels, out_channels, side=40, **kwargs) -> Op:
    kwargs = {"kernel_size": 3, "activation": "relu", "name": "b", "stage": "s"} | kwargs
    return conv(in_channels, out_channels, (side, side), **kwargs)


def test_unmeasured_kernels_are_predicted(model):
    ops, ms = campaign(300, 2)
    prediction = model.predict(ops)
    error = np.abs(prediction.ms / ms - 1)
    assert np.mean(error) < 0.08
    kinds = np.array([op.kind for op in ops])
    assert np.mean(error[kinds != "conv"]) < 0.15
    inside = ~prediction.extrapolated
    assert 0.5 < np.mean(inside) < 1
    assert 0.6 < np.mean(error[inside] < prediction.relative_sigma[inside]) <= 1
    assert np.mean(error) < 2 * model.cv_error


@pytest.mark.slow
def test_roofline_constants_are_found(measured):
    dense = [(op, ms) for op, ms in zip(*measured, strict=True) if op.kind == "conv" and not op.depthwise][:60]
    ops, ms = [op for op, _ in dense], [ms for _, ms in dense]
    fitted = fit_kernel_model(ops, ms, folds=2).roofline
    assert fitted.ms_per_flop == pytest.approx(1 / 2e8, rel=0.2)
    assert fitted.ms_per_byte == pytest.approx(1 / 2e7, rel=0.2)
    given = fit_kernel_model(ops, ms, folds=2, flops_per_s=1e11, bytes_per_s=1e10).roofline
    assert given.ms_per_flop == pytest.approx(1e-8)
    assert given.ms_per_byte == pytest.approx(1e-7)


@pytest.mark.slow
def test_order_of_the_measurements_does_not_matter_and_the_seed_does():
    ops, ms = campaign(60, 1)
    order = np.random.default_rng(3).permutation(len(ops))
    model = fit_kernel_model(ops, ms, folds=2)
    other = fit_kernel_model([ops[i] for i in order], ms[order], folds=2)
    query = campaign(50, 4)[0]
    np.testing.assert_array_equal(other.predict(query), model.predict(query))
    assert other.cv_error == model.cv_error
    assert (fit_kernel_model(ops, ms, folds=2, seed=1).predict(query).ms != model.predict(query).ms).any()


def test_a_grid_of_channels_is_predicted_like_its_members(model):
    in_channels, out_channels = np.array([[16], [64], [200]]), np.array([8, 32, 96, 256])
    grid = model.predict(body(in_channels, out_channels, stride=2))
    assert grid.ms.shape == grid.relative_sigma.shape == grid.extrapolated.shape == (3, 4)
    members = [body(int(i), int(o), stride=2) for i in in_channels.ravel() for o in out_channels]
    single = model.predict(members)
    for whole, part in zip(grid, single, strict=True):
        np.testing.assert_array_equal(whole.ravel(), part)
    assert model.predict(members[0]).ms.shape == ()
    assert model.predict([]).ms.shape == (0,)


def test_a_device_without_steps_gets_a_surface_with_hardly_a_hole(model):
    widths = np.arange(16, 384, 8)
    grid = model.predict(body(widths[:, None], widths)).ms
    for axis in (0, 1):
        np.testing.assert_allclose(np.maximum.accumulate(grid, axis=axis), grid, rtol=0.2)


def test_time_grows_with_work_in_the_large(model):
    widths = np.array([16, 32, 64, 128, 256])
    assert (np.diff(model.predict(body(widths, widths)).ms) > 0).all()


@pytest.mark.parametrize(
    "op",
    [
        body(64, 4096),
        body(2, 64),
        body(64, 64, 640),
        body(64, 64, kernel_size=7),
        body(64, 64, activation="silu"),
        conv(64, 64, (20, 80), kernel_size=3, activation="relu", name="b", stage="s"),
    ],
    ids=["wide", "narrow", "large map", "kernel", "activation", "aspect"],
)
def test_extrapolation_is_flagged_and_less_certain(model, op):
    inside, outside = model.predict(body(64, 64)), model.predict(op)
    assert not inside.extrapolated
    assert outside.extrapolated
    assert outside.relative_sigma > inside.relative_sigma
    assert outside.ms > 0


def test_sigma_grows_with_the_distance(model):
    prediction = model.predict(body(np.array([512, 2048, 8192]), 64, kernel_size=1))
    assert prediction.extrapolated.all()
    assert (np.diff(prediction.relative_sigma) > 0).all()
    assert model.predict(body(64, 64, kernel_size=5)).relative_sigma >= UNSEEN_FORM_SIGMA


def test_beyond_the_measured_sizes_the_roofline_carries_on(model):
    large, huge = model.predict(body(384, 384, 80)).ms, model.predict(body(384, 384, 320)).ms
    assert huge / large == pytest.approx(16, rel=0.3)


def test_repeats_of_one_operator_are_enough_to_fit():
    model = fit_kernel_model([body(64, 64)] * 20, np.linspace(0.9, 1.1, 20), folds=2)
    assert model.predict(body(64, 64)).ms == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_impossible_times_are_refused(measured, value):
    ops, ms = measured[0], measured[1].copy()
    ms[7] = value
    with pytest.raises(ProfileError, match=r"kernel 7 \(op\): time is .* expected a positive finite number"):
        fit_kernel_model(ops, ms)


def test_bad_input_is_refused(measured, model):
    ops, ms = measured
    with pytest.raises(ProfileError, match="given 0 measurements; expected at least 20"):
        fit_kernel_model([], [])
    with pytest.raises(ProfileError, match="300 kernels came with times of shape"):
        fit_kernel_model(ops, ms[1:])
    with pytest.raises(ProfileError, match="channels are arrays"):
        fit_kernel_model([*ops[1:], body(np.array([8, 16]), 8)], ms)
    with pytest.raises(ProfileError, match="below 1"):
        model.predict(body(0, 64))
    with pytest.raises(ProfileError, match="folds is 1"):
        fit_kernel_model(ops, ms, folds=1)
    with pytest.raises(ProfileError, match="flops_per_s is -1"):
        fit_kernel_model(ops, ms, flops_per_s=-1)
    with pytest.raises(ProfileError, match="activation of a kernel is 'gelu'"):
        model.predict([body(8, 8, activation="gelu")])
