"""Files over HTTP: verified, resumable."""
