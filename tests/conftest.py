"""What the whole suite needs in common. Imports goqueue's plugin by name, and hypothesis."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["goqueue.pytest_plugin", "pytester"]

# A deadline measures the machine, not the code. One database for all examples of a test is meant.
settings.register_profile("goqueue", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# The same examples at every run: a pull request must not fail by chance.
settings.register_profile("goqueue-ci", settings.get_profile("goqueue"), derandomize=True)
settings.load_profile("goqueue-ci" if os.environ.get("CI") else "goqueue")
