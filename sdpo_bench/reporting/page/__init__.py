"""The parts of the HTML page: styles of methods, answers, plots, picture grids, notices and runs."""
