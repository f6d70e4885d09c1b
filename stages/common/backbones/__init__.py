"""Pretrained networks without their tops: from uint8 images to feature maps, or to pooled features."""
