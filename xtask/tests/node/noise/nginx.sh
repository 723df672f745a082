# A server of root with workers of another user.
set -e
mkdir -p /var/lib/nginx /var/log/nginx /var/www
echo hello >/var/www/index.html
cat >/tmp/nginx.conf <<EOF
user www-data www-data;
worker_processes 4;
worker_priority -5;
worker_rlimit_nofile 4096;
pid /run/nginx.pid;
events { worker_connections 512; }
http { access_log /var/log/nginx/a.log; server { listen 80; root /var/www; } }
EOF
nginx -c /tmp/nginx.conf
python3 - <<EOF
import urllib.request
for _ in range(200): assert urllib.request.urlopen("http://127.0.0.1/index.html").read() == b"hello\n"
EOF
nginx -c /tmp/nginx.conf -s reload
sleep 0.3
nginx -c /tmp/nginx.conf -s quit
