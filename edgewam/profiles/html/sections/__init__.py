"""The sections of the report, one file each: `render(values) -> HTML`."""
