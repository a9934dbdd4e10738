// Serves the page that draws one dashboard to take.mjs; the dashboards lie beside it.
import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';

export default defineConfig({
  plugins: [react()],
  publicDir: '../dashboards',
  define: { 'process.env': {}, global: 'globalThis' },
  // Found at the start, since a dependency that is found later loads the page again.
  optimizeDeps: { include: ['@grafana/data', '@grafana/ui', '@grafana/ui/unstable', 'react-dom/client', 'rxjs'] },
  server: { host: '127.0.0.1', port: 0, hmr: false, watch: null },
  logLevel: 'warn',
});
