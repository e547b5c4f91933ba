"""The image sets that ship with the package; see LICENSES.md."""
