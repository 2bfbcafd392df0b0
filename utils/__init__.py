"""What any project of this kind needs and nothing that knows ours."""
