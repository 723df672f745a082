# A runtime that maps memory and starts threads by the dozen.
set -e
cat >/tmp/a.js <<EOF
const { Worker, isMainThread, parentPort } = require("worker_threads");
if (!isMainThread) { parentPort.postMessage(42); } else {
  for (let n = 0; n < 8; n++) new Worker(__filename).on("message", v => { if (v !== 42) process.exit(1); });
  const { execSync } = require("child_process");
  for (let n = 0; n < 20; n++) execSync("true");
  require("http").createServer((q, s) => s.end("x")).listen(8080, function () {
    require("http").get("http://127.0.0.1:8080/", r => { r.resume(); this.close(); });
  });
  try { require("os").setPriority(-10); } catch {}
}
EOF
node /tmp/a.js
