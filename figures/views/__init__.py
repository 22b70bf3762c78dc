"""Views with sliders, for notebooks."""
