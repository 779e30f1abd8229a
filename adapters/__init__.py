"""Backends: one module each, loaded when a model string or an import asks for it."""
