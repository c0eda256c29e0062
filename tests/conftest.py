"""Properties are tested for what they say, not for how long a busy machine takes to draw or to check an example."""

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
