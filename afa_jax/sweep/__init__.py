"""Many runs: which a table or figure needs, running them, and choosing alpha among them."""
