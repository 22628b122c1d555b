import { defineConfig } from "vite";

export default defineConfig({
  server: {
    host: "127.0.0.1",
    port: 5173,
    strictPort: true,
    // A preview arrives under a host of its own, and only with its token: the check of names would turn it away.
    allowedHosts: true,
  },
});
