"""Pure rules of token budgets: no clock, no I/O, no environment; time and randomness come in as arguments.

Amounts are integers: tokens, or micro-units of a currency. Times are integer microseconds since the Unix epoch
(``*_us``).
"""
