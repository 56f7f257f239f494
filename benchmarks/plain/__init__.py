"""Reference implementations of the U-Net of the library, without the library."""
