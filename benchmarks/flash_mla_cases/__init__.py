"""The product of configurations that FlashMLA's own tests run, through ``dsv4.flash_mla`` against float64."""
