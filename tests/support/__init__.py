"""What tests share: clients, servers, clocks, worlds and judges. Each helper stands in one place."""
