"""What a maintainer runs: pretrain and measure the embedded backbone, render cards, publish."""
