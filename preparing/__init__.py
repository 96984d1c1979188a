"""From raw recordings to segments."""
