// A board that kernels are timed on: TVM's RPC server in one program, without Python.
//
//     pocketphi-rpc --tracker HOST:PORT --key NAME [--port PORT]
//
// It registers with a tracker (python -m tvm.exec.rpc_tracker), and serves one client after the other, each in a process of its
// own, so that a kernel that crashes ends one session and not the server. The protocol is that of tvm/rpc/{base,server}.py.
// A client may run any code here: only for a network that you trust.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#include <sys/socket.h>
#include <sys/wait.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "line.h"
#include "pool.h"
#include "raised.h"
#include "src/runtime/rpc/rpc_endpoint.h"

// A loop's failure goes from one thread to another as TVM's error.
namespace pocketphi_runtime {
void raise(const char* reason) {
  tvm::ffi::details::SetSafeCallRaised(tvm::ffi::Error("RuntimeError", reason, ""));
}
Reason take_raised() {
  Reason reason;
  copy_text(std::string(tvm::ffi::details::MoveFromSafeCallRaised().message()), reason.text, sizeof reason.text);
  return reason;
}
}  // namespace pocketphi_runtime

namespace {

constexpr int32_t kMagic = 0xFF271, kTrackerMagic = 0x2F271, kMismatch = kMagic + 2;
constexpr int kPut = 3, kUpdateInfo = 5, kPending = 7;
constexpr int kPingSeconds = 2, kUnusedPings = 3;

struct Lost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

size_t send_some(int fd, const void* data, size_t size) {
  ssize_t n = ::send(fd, data, size, MSG_NOSIGNAL);
  if (n <= 0) throw Lost("connection lost");
  return static_cast<size_t>(n);
}

void send_all(int fd, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  for (size_t sent = 0; sent < size;) sent += send_some(fd, at + sent, size - sent);
}

void receive_all(int fd, void* data, size_t size) {
  char* at = static_cast<char*>(data);
  for (size_t got = 0; got < size;) {
    ssize_t n = ::recv(fd, at + got, size - got, 0);
    if (n <= 0) throw Lost("connection lost");
    got += static_cast<size_t>(n);
  }
}

void send_int(int fd, int32_t value) { send_all(fd, &value, sizeof value); }

int32_t receive_int(int fd) {
  int32_t value;
  receive_all(fd, &value, sizeof value);
  return value;
}

void send_text(int fd, const std::string& text) {
  send_int(fd, static_cast<int32_t>(text.size()));
  send_all(fd, text.data(), text.size());
}

std::string receive_text(int fd) {
  int32_t size = receive_int(fd);
  if (size < 0 || size > 1 << 20) throw Lost("not the RPC protocol");
  std::string text(static_cast<size_t>(size), '\0');
  receive_all(fd, text.data(), text.size());
  return text;
}

int connect_to(const std::string& host, const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) throw Lost("no such host: " + host);
  int fd = -1;
  for (addrinfo* a = found; a && fd < 0; a = a->ai_next) {
    fd = ::socket(a->ai_family, SOCK_STREAM, 0);
    if (fd >= 0 && ::connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
      ::close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(found);
  if (fd < 0) throw Lost("no tracker at " + host + ":" + port);
  return fd;
}

// Listens on `port`, or on a free one if it is 0; returns the socket and sets the port.
int listen_on(int& port) {
  int fd = ::socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  socklen_t size = sizeof address;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd, 4) != 0) {
    throw std::runtime_error("port " + std::to_string(port) + " is taken");
  }
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(address.sin_port);
  return fd;
}

class Tracker {
 public:
  Tracker(const std::string& host, const std::string& port, const std::string& key, int own_port)
      : fd_(connect_to(host, port)), key_(key), port_(own_port) {
    send_int(fd_, kTrackerMagic);
    if (receive_int(fd_) != kTrackerMagic) throw Lost(host + ":" + port + " is no RPC tracker");
    ask("[" + std::to_string(kUpdateInfo) + ", {\"key\": \"server:" + key_ + "\", \"addr\": [null, " + std::to_string(port_) + "]}]");
  }
  ~Tracker() { ::close(fd_); }

  // Offers this server to one client; returns the word by which it will say who it is.
  std::string offer() {
    std::random_device random;
    std::string match = key_ + ":" + std::to_string(random()) + std::to_string(random());
    ask("[" + std::to_string(kPut) + ", \"" + key_ + "\", [" + std::to_string(port_) + ", \"" + match + "\"], null]");
    return match;
  }
  // Whether nobody asked for that offer yet.
  bool pending(const std::string& match) {
    return ask("[" + std::to_string(kPending) + "]").find("\"" + match + "\"") != std::string::npos;
  }

 private:
  std::string ask(const std::string& text) {
    send_text(fd_, text);
    return receive_text(fd_);
  }
  int fd_;
  std::string key_;
  int port_;
};

// The next client of this server's offers.
int accept_client(int listener, Tracker& tracker, const std::string& key) {
  std::string match = tracker.offer();
  for (int unused = 0;;) {
    pollfd waiting{listener, POLLIN, 0};
    if (::poll(&waiting, 1, 1000 * kPingSeconds) <= 0) {
      unused = tracker.pending(match) ? 0 : unused + 1;  // taken, and its client never came
      if (unused > kUnusedPings) {
        match = tracker.offer();
        unused = 0;
      }
      continue;
    }
    int fd = ::accept(listener, nullptr, nullptr), yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    try {
      std::string said = receive_int(fd) == kMagic ? receive_text(fd) : "";
      if (said.substr(0, said.find(' ')) == "client:" + match) {
        send_int(fd, kMagic);
        send_text(fd, "server:" + key);
        return fd;
      }
      send_int(fd, kMismatch);
    } catch (const Lost&) {
    }
    ::close(fd);
  }
}

class Channel final : public tvm::runtime::RPCChannel {
 public:
  explicit Channel(int fd) : fd_(fd) {}
  size_t Send(const void* data, size_t size) override { return send_some(fd_, data, size); }
  size_t Recv(void* data, size_t size) override {
    ssize_t n = ::recv(fd_, data, size, 0);
    return n < 0 ? 0 : static_cast<size_t>(n);
  }

 private:
  int fd_;
};

void serve(int fd, const std::string& folder) {
  using tvm::ffi::Function;
  auto path = [folder](const std::string& name) {
    return folder + "/" + std::filesystem::path(name).filename().string();  // nothing outside the folder
  };
  Function::SetGlobal("tvm.rpc.server.upload", Function::FromTyped([path](std::string name, tvm::ffi::Bytes data) {
                        std::ofstream(path(name), std::ios::binary).write(data.data(), static_cast<std::streamsize>(data.size()));
                      }));
  std::unique_ptr<pocketphi_runtime::Pool> pool;  // of this thread, which runs what the client asks for
  Function::SetGlobal("runtime.config_threadpool", Function::FromTyped([&pool](int, int threads) {
                        std::vector<unsigned> cores = pocketphi_runtime::fast_cores();
                        pool.reset();
                        pool = std::make_unique<pocketphi_runtime::Pool>(std::max(threads, 1), cores);
                      }));
  Function::SetGlobal("tvm.rpc.server.load_module",
                      Function::FromTyped([path](std::string name) { return tvm::ffi::Module::LoadFromFile(path(name)); }));
  tvm::runtime::RPCEndpoint::Create(std::make_unique<Channel>(fd), "pocketphi-rpc", "")->ServerLoop();
}

// One session in a process of its own.
void serve_in_child(int fd) {
  std::string folder = (std::filesystem::temp_directory_path() / "pocketphi-rpc.XXXXXX").string();
  if (!mkdtemp(folder.data())) throw std::runtime_error(folder + ": cannot be made");
  pid_t child = fork();
  if (child == 0) {
    int code = 0;
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // ends with the server
#endif
    try {
      serve(fd, folder);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "session ended: %s\n", error.what());
      code = 1;
    }
    _exit(code);
  }
  ::close(fd);
  int status = 0;
  waitpid(child, &status, 0);
  std::filesystem::remove_all(folder);
  std::fprintf(stderr, "session done%s\n", status ? ", with an error" : "");
}

std::string option(int argc, char** argv, const std::string& name, const char* fallback) {
  for (int i = 1; i + 1 < argc; i += 2) {
    if (argv[i] == name) return argv[i + 1];
  }
  if (!fallback) throw std::runtime_error("usage: pocketphi-rpc --tracker HOST:PORT --key NAME [--port PORT]");
  return fallback;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::string tracker = option(argc, argv, "--tracker", nullptr), key = option(argc, argv, "--key", nullptr);
    int port = std::atoi(option(argc, argv, "--port", "0").c_str());
    size_t colon = tracker.rfind(':');
    if (colon == std::string::npos) throw std::runtime_error("--tracker " + tracker + ": expected HOST:PORT");
    int listener = listen_on(port);
    std::fprintf(stderr, "serving %s on port %d\n", key.c_str(), port);
    for (;;) {
      try {
        int client;
        {
          Tracker registered(tracker.substr(0, colon), tracker.substr(colon + 1), key, port);
          client = accept_client(listener, registered, key);
        }
        serve_in_child(client);
      } catch (const Lost& error) {
        std::fprintf(stderr, "%s; trying again\n", error.what());
        sleep(2);
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pocketphi-rpc: %s\n", error.what());
    return 2;
  }
}
