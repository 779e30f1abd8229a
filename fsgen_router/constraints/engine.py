"""llguidance, or what to install for it."""

try:
    import llguidance
    from llguidance.gbnf_to_lark import gbnf_to_lark
except ImportError as error:
    raise ImportError(
        "response_format, regex and grammar need the extra 'constrain': pip install 'fsgen-router[constrain]'"
    ) from error

__all__ = ["gbnf_to_lark", "llguidance"]
