// What the backends over ONNX Runtime have in common.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <memory>
#include <string>

#include "onnxruntime.hpp"

namespace sana_rt::runtime {

// The one environment of the process. It lives as long as that, as ONNX Runtime's own threads may.
Ort::Env& environment();

// Memory of the first NVIDIA GPU, as ONNX Runtime calls it.
Ort::MemoryInfo cuda_memory_info(OrtAllocatorType allocator = OrtDeviceAllocator);

// Graphs as inference sessions of one execution provider.
class OrtBackend : public Backend {
 public:
  const std::string& name() const override { return name_; }
  Memory& memory() override { return *memory_; }
  std::unique_ptr<Context> open(const Artifact& artifact, bool lasting) override;

 protected:
  OrtBackend(std::string name, std::shared_ptr<Memory> memory, Ort::MemoryInfo info, int threads)
      : name_(std::move(name)),
        memory_(std::move(memory)),
        info_(std::move(info)),
        threads_(threads) {}

 private:
  // Adds the provider to the options of a graph's session.
  virtual void add_provider(Ort::SessionOptions& options, const Artifact& artifact) const = 0;
  // Whether its sessions share our arena.
  virtual bool shares_arena() const { return true; }

  std::shared_ptr<Ort::Session> session(const Artifact& artifact, bool lasting) const;

  std::string name_;
  std::shared_ptr<Memory> memory_;
  Ort::MemoryInfo info_;
  int threads_;
};

}  // namespace sana_rt::runtime
