"""Tools that build and check the repository. They are not in the wheel."""
