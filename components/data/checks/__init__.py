"""What can be wrong with clips, their texts and their splits; the `doctor` command puts it together."""
