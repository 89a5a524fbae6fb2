"""The IR: op table, interned nodes, whole programs, their text form and verifier."""
