"""From predictions to scores, tables, pictures and the report."""
