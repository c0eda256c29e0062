"""A stand-in for the package `tensorrt` and for the CUDA runtime: what was asked of them, and a network that answers.

Nothing here has seen a GPU. The fake keeps to what the documentation of TensorRT 10 and 11 says: in 11 there are no
flags for fp16 and int8, and every network is strongly typed.
"""

from __future__ import annotations

import json
import types

import numpy as np
import onnx


class FakeCuda:
    """Memory that is a dictionary of arrays."""

    name, capability = "NVIDIA Fake 9000", "8.9"

    def __init__(self):
        self.memory, self.freed = {}, []

    def device_name(self):
        return self.name

    def compute_capability(self):
        return self.capability

    def stream(self):
        return 77

    def allocate(self, num_bytes):
        address = 1000 + len(self.memory)
        self.memory[address] = np.zeros(num_bytes, np.uint8)
        return address

    def copy_in(self, device, array, stream):
        assert stream == 77 and array.flags.c_contiguous
        self.memory[device][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def copy_out(self, array, device, stream):
        array.reshape(-1).view(np.uint8)[:] = self.memory[device][: array.nbytes]

    def wait(self, stream):
        assert stream == 77

    def free_memory(self, address):
        self.freed.append(address)

    def free(self, addresses, stream):
        self.freed += list(addresses)


def fake_tensorrt(version, cuda, *, refuse=None, precision=None, spoil=None):
    """A module `tensorrt` of this version.

    Args:
        version: Such as `10.13.3.9`.
        cuda: The `FakeCuda` whose memory engines read and write.
        refuse: `parse` or `build`: what fails.
        precision: That all layers run in, whatever the graph says; by default that of the weights.
        spoil: Changes the outputs of engines.

    Returns:
        The module; `calls` lists what was asked.
    """
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.calls = calls = []
    flags = {"TF32": "TF32"} if version.startswith("11") else {"TF32": "TF32", "FP16": "FP16", "INT8": "INT8"}
    trt.BuilderFlag = types.SimpleNamespace(**flags)
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    trt.ProfilingVerbosity = types.SimpleNamespace(DETAILED="detailed")
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="input", OUTPUT="output")
    trt.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    trt.nptype = np.dtype
    trt.init_libnvinfer_plugins = lambda logger, namespace: calls.append(("plugins", namespace))

    class Logger:
        ERROR, WARNING = "error", "warning"

        def __init__(self, severity):
            pass

    class TimingCache:
        def __init__(self, content):
            self.content = content

        def serialize(self):
            return self.content + b"+timings"

    class Config:
        profiling_verbosity = None

        def __init__(self):
            self.cache = None

        def set_memory_pool_limit(self, pool, size):
            calls.append(("memory", pool, size))

        def set_flag(self, flag):
            calls.append(("flag", flag))

        def clear_flag(self, flag):
            calls.append(("clear", flag))

        def add_optimization_profile(self, profile):
            calls.append(("profile", profile.shapes))

        def create_timing_cache(self, content):
            return TimingCache(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            if cache.content.startswith(b"foreign"):
                return False
            self.cache = cache
            return True

        def get_timing_cache(self):
            return self.cache

    class Profile:
        def set_shape(self, name, smallest, usual, largest):
            self.shapes = (name, smallest, usual, largest)

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flag_bits):
            calls.append(("network", flag_bits))
            return types.SimpleNamespace(content=None)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            if refuse == "build":
                return None
            details = config.profiling_verbosity == "detailed"
            return json.dumps({"details": details}).encode() + b"\n" + network.content

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, logger):
            self.network = network

        def parse(self, content):
            self.network.content = content
            return refuse != "parse"

        def get_error(self, index):
            return types.SimpleNamespace(desc=lambda: "no importer for FancyOp")

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            return Engine(plan) if plan.startswith(b"{") else None

    class Engine:
        def __init__(self, plan):
            head, content = plan.split(b"\n", 1)
            self.details = json.loads(head)["details"]
            self.proto = onnx.load_from_string(content)
            graph = self.proto.graph
            self.values = {value.name: (value, "input") for value in graph.input}
            self.values |= {value.name: (value, "output") for value in graph.output}
            self.num_io_tensors = len(self.values)

        def get_tensor_name(self, index):
            return list(self.values)[index]

        def get_tensor_mode(self, name):
            return self.values[name][1]

        def get_tensor_dtype(self, name):
            return onnx.helper.tensor_dtype_to_np_dtype(self.values[name][0].type.tensor_type.elem_type)

        def create_execution_context(self):
            return Context(self)

        def create_engine_inspector(self):
            return types.SimpleNamespace(get_engine_information=self.information)

        def information(self, form):
            assert form == "json"
            return json.dumps({"Layers": [self.layer(node) for node in self.proto.graph.node]})

        def layer(self, node):
            if not self.details:
                return node.name or node.output[0]
            kinds = {tensor.name: tensor.data_type for tensor in self.proto.graph.initializer}
            weight = node.input[1] if len(node.input) > 1 else ""
            ran = precision or ("fp16" if kinds.get(weight) == onnx.TensorProto.FLOAT16 else "fp32")
            if version.startswith("11"):
                said = {"Format": "kLINEAR", "DataType": {"fp16": "Half", "fp32": "Float", "int8": "Int8"}[ran]}
            else:
                said = {"Format/Datatype": f"Row major linear {ran.upper()} format"}
            kind = {"Conv": "CaskConvolution", "MatMul": "MatrixMultiply"}.get(node.op_type, f"k{node.op_type}")
            name = node.name or node.output[0]
            tensors = [{"Name": name, **said} for name in node.input[:1]]
            return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": []}

    class Context:
        def __init__(self, engine):
            self.engine, self.shapes, self.addresses = engine, {}, {}

        def set_input_shape(self, name, shape):
            self.shapes[name] = shape
            return shape[0] <= 8

        def set_tensor_address(self, name, address):
            self.addresses[name] = address
            return True

        def get_tensor_shape(self, name):
            return self.results()[name].shape

        def execute_async_v3(self, stream):
            for name, values in self.results().items():
                cuda.copy_in(self.addresses[name], np.ascontiguousarray(values), stream)
            return True

        def results(self):
            shape = self.shapes["images"]
            stored = cuda.memory[self.addresses["images"]][: int(np.prod(shape)) * 4]
            images = stored.view(np.float32).reshape(shape)
            found = run_graph(self.engine.proto, images)
            return found if spoil is None else spoil(found)

    trt.Logger, trt.Builder, trt.OnnxParser, trt.Runtime = Logger, Builder, OnnxParser, Runtime
    return trt


def run_graph(proto, images):
    """The outputs, from ONNX Runtime; the plugin's from numpy."""
    import onnxruntime

    from detector.nms import select_best

    plugins = [node for node in proto.graph.node if node.op_type == "EfficientNMS_TRT"]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if plugins:
        kept = [node for node in copy.graph.node if node.op_type != "EfficientNMS_TRT"]
        del copy.graph.node[:], copy.graph.output[:]
        copy.graph.node.extend(kept)
        for name in plugins[0].input:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"images": images}), strict=True))
    if not plugins:
        return outputs
    told = {entry.name: onnx.helper.get_attribute_value(entry) for entry in plugins[0].attribute}
    boxes, scores = (outputs[name] for name in plugins[0].input)
    keep = told["max_output_boxes"]
    found = {
        "num_dets": np.zeros((len(boxes), 1), np.int32),
        "boxes": np.zeros((len(boxes), keep, 4), np.float32),
        "scores": np.zeros((len(boxes), keep), np.float32),
        "classes": np.zeros((len(boxes), keep), np.int32),
    }
    for index in range(len(boxes)):
        best = select_best(
            scores[index],
            boxes[index],
            score_threshold=told["score_threshold"],
            iou_threshold=told["iou_threshold"],
            max_detections=keep,
        )
        count = len(best[1])
        found["num_dets"][index] = count
        for name, values in zip(("boxes", "scores", "classes"), best, strict=True):
            found[name][index, :count] = values
    return found
