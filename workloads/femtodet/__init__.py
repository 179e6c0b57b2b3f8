"""FemtoDet (Tu et al., ICCV 2023, arXiv 2301.06719)."""
