"""Other libraries' views of our models; each imports its library, so import the one you need."""
