"""Problems with known posteriors, the methods compared on them, and the measurements."""
