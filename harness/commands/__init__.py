"""The commands of `harness`, thin: each reads its input, calls one function, and says what to do next."""
