# A virtual machine that compiles and runs a source file.
set -e
cat >/tmp/A.java <<EOF
public class A { public static void main(String[] a) throws Exception {
  var threads = new java.util.ArrayList<Thread>();
  for (int n = 0; n < 50; n++) { var t = new Thread(() -> {}); t.setPriority(10); t.start(); threads.add(t); }
  for (var t : threads) t.join();
  for (int n = 0; n < 10; n++) new ProcessBuilder("true").start().waitFor();
  System.out.println(42);
} }
EOF
java=$(echo /usr/lib/jvm/java-17-*/bin/java)
mkdir -p /etc/java-17-openjdk
$java -XX:+UseLargePages -XX:+UseNUMA -XX:ThreadPriorityPolicy=1 /tmp/A.java >/tmp/out
test "$(tail -1 /tmp/out)" = 42
