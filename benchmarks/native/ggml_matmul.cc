// Products with a Q4_0 matrix by llama.cpp's CPU backend, on requests. Weights go to its "extra" buffer type where the CPU has
// one that takes them (there they are repacked), as llama.cpp's own model loader does.
//
//   load FILE COLUMNS ROWS COPIES M GROUP   {"buffer": NAME}      then COPIES matrices are held
//   input FILE OUT                          {}                    x float32 [M, COLUMNS]; writes y float32 [M, ROWS]
//   time SECONDS                            {"seconds": a product}    GROUP products a graph, one matrix after the other
//   repeat COUNT                            {}                    COUNT products with the first matrix
//
// Started with the number of threads.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr size_t kNodes = 256;  // of a graph, at most

std::vector<char> read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Room for tensors and for graphs of them; their data lies elsewhere.
ggml_context *new_context(size_t tensors, size_t graphs = 0) {
  return ggml_init({tensors * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(kNodes, false), nullptr, true});
}

class Products {
 public:
  explicit Products(int threads) : backend_(ggml_backend_cpu_init()) {
    ggml_backend_cpu_set_n_threads(backend_, threads);
  }

  const char *load(const std::string &path, int64_t columns, int64_t rows, int copies, int64_t m, int group) {
    release();
    std::vector<char> data = read_file(path);
    held_ = new_context(copies + 1);
    for (int i = 0; i < copies; ++i) weights_.push_back(ggml_new_tensor_2d(held_, GGML_TYPE_Q4_0, columns, rows));
    ggml_backend_buffer_type_t type = buffer_type(columns, rows);
    weight_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(held_, type);
    for (ggml_tensor *weight : weights_) ggml_backend_tensor_set(weight, data.data(), 0, ggml_nbytes(weight));
    computed_ = new_context(copies + 1, copies);
    x_ = ggml_new_tensor_2d(computed_, GGML_TYPE_F32, columns, m);
    for (int first = 0; first < copies; first += group) {
      ggml_cgraph *graph = ggml_new_graph_custom(computed_, kNodes, false);
      for (int i = first; i < first + group; ++i) {
        y_.push_back(ggml_mul_mat(computed_, weights_[i], x_));
        ggml_build_forward_expand(graph, y_.back());
      }
      graphs_.push_back(graph);
    }
    group_ = group;
    compute_buffer_ = ggml_backend_alloc_ctx_tensors(computed_, backend_);
    return ggml_backend_buft_name(type);
  }

  void input(const std::string &in, const std::string &out) {
    ggml_backend_tensor_set(x_, read_file(in).data(), 0, ggml_nbytes(x_));
    compute(0);
    std::vector<char> y(ggml_nbytes(y_[0]));
    ggml_backend_tensor_get(y_[0], y.data(), 0, y.size());
    std::ofstream(out, std::ios::binary).write(y.data(), y.size());
  }

  double time(double seconds) {
    auto begin = std::chrono::steady_clock::now();
    double taken = 0;
    long count = 0;
    while (!count || taken < seconds) {
      compute(next_++ % graphs_.size());
      count += group_;
      taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    return taken / count;
  }

  void compute(size_t graph) {
    if (ggml_backend_graph_compute(backend_, graphs_[graph]) != GGML_STATUS_SUCCESS) std::exit(1);
  }

 private:
  // The first that takes a product with such a matrix, else plain memory: llama-model-loader's rule.
  ggml_backend_buffer_type_t buffer_type(int64_t columns, int64_t rows) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend_);
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (auto *type = get ? get(device) : nullptr; type && *type; ++type) {
      ggml_context *context = new_context(4);
      ggml_tensor *weight = ggml_new_tensor_2d(context, GGML_TYPE_Q4_0, columns, rows);
      ggml_tensor *product = ggml_mul_mat(context, weight, ggml_new_tensor_2d(context, GGML_TYPE_F32, columns, 512));
      weight->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
      bool takes = ggml_backend_dev_supports_op(device, product);
      ggml_backend_buffer_free(weight->buffer);
      ggml_free(context);
      if (takes) return *type;
    }
    return ggml_backend_cpu_buffer_type();
  }

  void release() {
    if (!held_) return;
    ggml_backend_buffer_free(weight_buffer_);
    ggml_backend_buffer_free(compute_buffer_);
    ggml_free(held_);
    ggml_free(computed_);
    weights_.clear();
    graphs_.clear();
    y_.clear();
    next_ = 0;
  }

  ggml_backend_t backend_;
  ggml_context *held_ = nullptr, *computed_ = nullptr;
  ggml_backend_buffer_t weight_buffer_ = nullptr, compute_buffer_ = nullptr;
  ggml_tensor *x_ = nullptr;
  std::vector<ggml_tensor *> weights_, y_;
  std::vector<ggml_cgraph *> graphs_;
  int group_ = 1;
  size_t next_ = 0;
};

}  // namespace

int main(int, char **argv) {
  ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
  Products products(std::atoi(argv[1]));
  std::printf("{}\n");
  std::fflush(stdout);
  std::string verb, file, out;
  while (std::cin >> verb) {
    if (verb == "load") {
      long columns, rows, m;
      int copies, group;
      std::cin >> file >> columns >> rows >> copies >> m >> group;
      std::printf("{\"buffer\": \"%s\"}\n", products.load(file, columns, rows, copies, m, group));
    } else if (verb == "input") {
      std::cin >> file >> out;
      products.input(file, out);
      std::printf("{}\n");
    } else if (verb == "time") {
      double seconds;
      std::cin >> seconds;
      std::printf("{\"seconds\": %.9g}\n", products.time(seconds));
    } else {
      int count;
      std::cin >> count;
      for (int i = 0; i < count; ++i) products.compute(0);
      std::printf("{}\n");
    }
    std::fflush(stdout);
  }
}
