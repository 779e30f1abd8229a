"""Backends: a module or a package each, loaded when a model string or an import asks for it."""
