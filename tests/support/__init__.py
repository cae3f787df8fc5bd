"""What several tests share: an oracle of the losses, small and strange models, planted faults."""
