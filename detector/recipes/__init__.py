"""Training recipes by name: YAML files that name what differs from the defaults of `detector.config`."""
