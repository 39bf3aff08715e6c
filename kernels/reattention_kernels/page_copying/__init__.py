"""Some pages of a larger store to places of a smaller one."""
