"""What MobileVLM and Imp share: one skeleton of tower, projector, splice and decoder, and all around it."""
