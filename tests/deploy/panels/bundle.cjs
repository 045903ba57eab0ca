// Bundles page.jsx for a browser: `node bundle.cjs FOLDER`, with NODE_PATH at the installed packages.
//
// The text editor, the maps, the forms and the telemetry of @grafana/ui are most of its weight and no part of a panel.
// They are not installed: `overrides` in package.json has a small package in their places, and here they are empty.

const { build } = require("esbuild");
const { overrides } = require("./package.json");

// Packages whose default export Node's rules hide from a module: esbuild follows them for files called .mjs.
const hidden = /^react-custom-scrollbars-2$/;

const changes = {
  name: "changes",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: hidden }, ({ path, namespace }) => (namespace === "hidden" ? null : { path, namespace: "hidden" }));
    onLoad({ filter: /.*/, namespace: "hidden" }, ({ path }) => ({ contents: `export { default } from "${path}";`, resolveDir: __dirname }));
    const named = new RegExp(`^(${Object.keys(overrides).join("|")})(/|$)`);
    onResolve({ filter: named }, ({ path }) => ({ path, namespace: "absent" }));
    onLoad({ filter: /.*/, namespace: "absent" }, () => ({ contents: "module.exports = {};" }));
  },
};

build({
  entryPoints: [`${__dirname}/page.jsx`],
  outdir: process.argv[2],
  bundle: true,
  define: { "process.env.NODE_ENV": '"production"' },
  jsx: "automatic",
  logLevel: "warning",
  nodePaths: [process.env.NODE_PATH],
  plugins: [changes],
}).catch(() => process.exit(1));
