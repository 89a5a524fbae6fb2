"""The grammar of the language: `attn.lark` is the only definition of its syntax."""
