"""The vision-language BERTs on image regions: one family, its members are presets."""
