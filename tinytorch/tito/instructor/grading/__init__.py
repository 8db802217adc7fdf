"""`tito grade`, piece by piece."""
