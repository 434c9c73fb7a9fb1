"""Building blocks that several plugins share: the policy and its head, chat masking, packing."""
