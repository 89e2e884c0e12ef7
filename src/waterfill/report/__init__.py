"""Reports on compressed files and networks, in tables and text."""
