"""What an operator does to a guest or a host interface: typed operations, run one way for every way in.

`operation` is the contract, `operations` the one list, `executor` runs one; `connection`, `locks` and `audit` are
what it stands on. A new area is one file with an `OPERATIONS` tuple and one line in `operations`.
"""
