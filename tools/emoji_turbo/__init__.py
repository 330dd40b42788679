"""Training recipe of the embedded model ``emoji-turbo`` and its learned rewards; see its README."""
