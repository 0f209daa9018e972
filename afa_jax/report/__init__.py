"""Tables and figures: pure functions of the files that runs leave behind."""
