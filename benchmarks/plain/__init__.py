"""The U-Net of the library written plainly, as its users would without it: what to compare with."""
