// ONNX Runtime by its C API; the library itself is loaded when a job names it.

#ifdef EDGEWATT_ORT

#include <dlfcn.h>
#include <fcntl.h>
#include <onnxruntime_c_api.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <map>
#include <new>
#include <set>
#include <sstream>

#include "run.hpp"

namespace edgewatt {
namespace {

// The oldest form of the API that has all that is used here (of onnxruntime 1.14): older libraries are refused, and
// newer ones still have it.
constexpr uint32_t api_version = 14;
constexpr std::size_t most_fallback_ops = 10;  // more kinds of nodes that ran elsewhere tell a reader nothing
const std::string suffix = "ExecutionProvider", cpu = "CPU" + suffix;

struct Type {
    const char* name;
    ONNXTensorElementDataType code;
    std::size_t bytes;
};

constexpr Type types[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},   {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},     {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}, {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
};

std::string lower(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}

// "CPUExecutionProvider" as one asks for it.
std::string short_name(const std::string& provider) {
    const bool has_suffix = provider.size() > suffix.size() && provider.compare(provider.size() - suffix.size(), suffix.size(), suffix) == 0;
    return lower(has_suffix ? provider.substr(0, provider.size() - suffix.size()) : provider);
}

// The numbers of processors this process may use.
int processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(CPU_COUNT(&set), 1) : 1;
}

// Memory for a tensor, aligned for any vector unit, and its shape.
struct Tensor {
    std::string name;
    const Type* type = nullptr;
    std::vector<int64_t> shape;
    std::size_t bytes = 0;
    std::unique_ptr<char, void (*)(void*)> data{nullptr, std::free};
    OrtValue* value = nullptr;
    int fd = -1;  // the file it comes from or goes to

    void allocate() {
        bytes = type->bytes;
        for (const int64_t n : shape) bytes *= static_cast<std::size_t>(n);
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, std::max<std::size_t>(bytes, 1))) throw std::bad_alloc();
        data.reset(static_cast<char*>(memory));
    }
};

class OnnxRuntime : public Runner {
public:
    explicit OnnxRuntime(const Setting& setting)
        : params_(setting.params), item_count_(setting.item_count), scratch_(setting.scratch) {
        if (setting.item_phases.size() != 1)
            throw Refused("job: item_phases has " + std::to_string(setting.item_phases.size()) + " names; native:onnxruntime runs a graph, which is one phase");
        phase_ = setting.item_phases[0];
    }

    json::Object load() override {
        const std::string &library = text(params_, "library"), &model = text(params_, "model");
        threads_ = static_cast<int>(std::min(number(params_, "threads", 0), 1024.0));
        if (!threads_) threads_ = processors();
        open_library(library);
        const std::vector<std::string> available = available_providers();
        asked_ = provider(available);
        read_inputs();
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgewatt", &env_), "its environment");
        make_session(model);
        bind();
        const json::Object placement = placed();  // one run, so that all memory is there before anything is timed
        json::Object facts;
        facts.add("engine", "onnxruntime").add("version", version_).add("threads", threads_);
        facts.add("provider_asked", short_name(asked_)).add("providers_loaded", asked_ == cpu ? std::vector<std::string>{cpu} : std::vector<std::string>{asked_, cpu});
        facts.add("providers_available", available);
        json::Object options;
        for (const auto& [key, value] : options_) options.add(key, value);
        facts.raw("provider_options", options.str());
        facts.add(placement);
        facts.add("graph", std::filesystem::path(model).filename().string()).add("model_bytes", model_bytes(model));
        facts.add("execution", "sequential").add("spinning", true).add("optimisation", "all");
        return facts;
    }

    // The item's inputs are read into memory that stays bound, as a camera or a decoder would leave them there.
    void prepare(int64_t item) override {
        if (item == at_) return;
        for (Tensor& input : inputs_) {
            for (std::size_t done = 0; done < input.bytes;) {
                const ssize_t n = pread(input.fd, input.data.get() + done, input.bytes - done, static_cast<off_t>(static_cast<std::size_t>(item) * input.bytes + done));
                if (n < 0 && errno == EINTR) continue;
                if (n <= 0) throw std::runtime_error("input " + input.name + ", item " + std::to_string(item) + ": " + (n ? text_of(errno) : "the file has become shorter"));
                done += static_cast<std::size_t>(n);
            }
        }
        at_ = item;
    }

    void run(int64_t, Marks& mark) override {
        mark(phase_.c_str());
        infer();
    }

    void run_phase(const std::string&, int64_t) override { infer(); }

    void keep(int64_t item) override {
        for (Tensor& output : outputs_) {
            if (output.fd < 0) {
                const std::string path = (scratch_ / file_of(output)).string();
                output.fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
                if (output.fd < 0) throw std::runtime_error(text_of(errno) + ": " + path);
            }
            if (const int error = write_whole(output.fd, output.data.get(), output.bytes)) throw std::runtime_error("output " + output.name + ": " + text_of(error));
        }
        kept_.push_back(std::to_string(item));
    }

    void save() override {
        std::vector<std::string> told;
        for (Tensor& output : outputs_) {
            if (output.fd >= 0 && close(output.fd)) throw std::runtime_error("output " + output.name + ": " + text_of(errno));
            output.fd = -1;
            std::vector<std::string> shape;
            for (const int64_t n : output.shape) shape.push_back(std::to_string(n));
            told.push_back(json::Object().add("name", output.name).add("type", output.type->name).raw("shape", json::list(shape)).add("file", file_of(output)).str());
        }
        std::ofstream index(scratch_ / "outputs.json");
        index << json::Object().add("form", 1).raw("items", json::list(kept_)).raw("outputs", json::list(told)).str() << "\n";
        index.close();
        if (!index) throw std::runtime_error("outputs.json cannot be written: " + text_of(errno));
    }

private:
    // Throws what a call says, if it failed.
    void check(OrtStatus* status, const std::string& doing) {
        if (!status) return;
        const std::string said = api_->GetErrorMessage(status);
        api_->ReleaseStatus(status);
        throw std::runtime_error("onnxruntime " + version_ + ": " + doing + ": " + said);
    }

    void open_library(const std::string& path) {
        library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library_) throw Refused(std::string("job: library cannot be loaded: ") + dlerror());
        const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library_, "OrtGetApiBase"));
        if (!base) throw Refused("job: library " + path + " is not onnxruntime (it has no OrtGetApiBase)");
        version_ = base()->GetVersionString();
        api_ = base()->GetApi(api_version);
        if (!api_) throw Refused("job: library is onnxruntime " + version_ + "; wanted 1." + std::to_string(api_version) + " or newer");
    }

    std::vector<std::string> available_providers() {
        char** list = nullptr;
        int n = 0;
        check(api_->GetAvailableProviders(&list, &n), "its providers");
        std::vector<std::string> found(list, list + n);
        check(api_->ReleaseAvailableProviders(list, n), "its providers");
        return found;
    }

    // The runtime's name of the provider that the job asks for ("cpu" -> "CPUExecutionProvider").
    std::string provider(const std::vector<std::string>& available) {
        const std::string wanted = params_["provider"].is_set() ? text(params_, "provider") : "cpu";
        std::string there;
        for (const std::string& one : available) {
            if (short_name(one) == lower(wanted) || lower(one) == lower(wanted)) return one;
            there += (there.empty() ? "" : ", ") + short_name(one);
        }
        throw Refused("provider " + wanted + ": not in this onnxruntime (" + version_ + "); it has " + there);
    }

    void read_inputs() {
        const json::Value& given = params_["inputs"];
        if (!given.is(json::Value::Kind::list) || given.items.empty()) throw Refused("job: inputs is " + json::shown(given) + "; wanted a list of objects");
        for (const json::Value& told : given.items) {
            Tensor input;
            input.name = text(told, "name");
            const std::string& type = text(told, "type");
            const auto known = std::find_if(std::begin(types), std::end(types), [&](const Type& one) { return type == one.name; });
            if (known == std::end(types)) throw Refused("job: input " + input.name + ": type " + type + " is none that is known here");
            input.type = known;
            bool is_shape = told["shape"].is(json::Value::Kind::list);
            double bytes = static_cast<double>(known->bytes);
            for (const json::Value& n : told["shape"].items) {
                is_shape = is_shape && n.is(json::Value::Kind::integer) && n.integer > 0;
                input.shape.push_back(n.integer);
                bytes *= n.real;
            }
            if (!is_shape || bytes > 4e9) throw Refused("job: shape of input " + input.name + " is " + json::shown(told["shape"]) + "; wanted lengths above 0, and at most 4 GB");
            input.allocate();
            const std::string& path = text(told, "path");
            input.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
            struct stat about {};
            if (input.fd < 0 || fstat(input.fd, &about)) throw Refused("job: input " + input.name + ": " + text_of(errno) + ": " + path);
            const auto wanted = static_cast<int64_t>(input.bytes) * item_count_;
            if (about.st_size != wanted)
                throw Refused("job: input " + input.name + ": " + path + " has " + std::to_string(about.st_size) + " bytes; wanted " + std::to_string(wanted) + " for " + std::to_string(item_count_) + " items");
            inputs_.push_back(std::move(input));
        }
    }

    void make_session(const std::string& model) {
        OrtSessionOptions* options = nullptr;
        check(api_->CreateSessionOptions(&options), "session options");
        check(api_->SetIntraOpNumThreads(options, threads_), "threads");
        check(api_->SetInterOpNumThreads(options, 1), "threads");
        check(api_->SetSessionExecutionMode(options, ORT_SEQUENTIAL), "execution mode");
        check(api_->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL), "optimisation");
        check(api_->SetSessionLogSeverityLevel(options, 3), "log level");  // what a warning would say is checked below
        // Of one run, to see where each node runs; ended before anything is measured.
        check(api_->EnableProfiling(options, (scratch_ / "nodes").c_str()), "profiling");
        const std::vector<int64_t>& shape = inputs_[0].shape;
        if (shape.size() == 4) {
            // A known size lets residuals be fused and memory be planned: faster than with free dimensions.
            check(api_->AddFreeDimensionOverrideByName(options, "height", shape[2]), "height");
            check(api_->AddFreeDimensionOverrideByName(options, "width", shape[3]), "width");
        }
        add_provider(options);
        OrtStatus* status = api_->CreateSession(env_, model.c_str(), options, &session_);
        api_->ReleaseSessionOptions(options);
        check(status, model + " cannot be loaded");
    }

    void add_provider(OrtSessionOptions* options) {
        for (const auto& [key, value] : mapping(params_, "provider_options").members)
            options_.emplace_back(key, value.is(json::Value::Kind::text) ? value.text : json::shown(value));
        if (asked_ == cpu) return;
        const std::string name = short_name(asked_);
        if (name == "nnapi") {  // older than the call that takes names; its one option is a set of flags
            const auto add = reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, uint32_t)>(dlsym(library_, "OrtSessionOptionsAppendExecutionProvider_Nnapi"));
            if (!add) throw Refused("provider nnapi: this onnxruntime (" + version_ + ") tells of it but cannot add it");
            return check(add(options, static_cast<uint32_t>(number(mapping(params_, "provider_options"), "flags", 0))), "provider nnapi");
        }
        std::vector<const char*> keys, values;
        for (const auto& [key, value] : options_) {
            keys.push_back(key.c_str());
            values.push_back(value.c_str());
        }
        const std::string told = name == "xnnpack" ? "XNNPACK" : asked_.substr(0, asked_.size() - suffix.size());
        check(api_->SessionOptionsAppendExecutionProvider(options, told.c_str(), keys.data(), values.data(), keys.size()), "provider " + name);
    }

    // The names the session has, by one of its calls.
    template <class Count, class Name>
    std::vector<std::string> session_names(Count count, Name name) {
        std::size_t n = 0;
        check((api_->*count)(session_, &n), "its tensors");
        std::vector<std::string> found;
        for (std::size_t k = 0; k < n; ++k) {
            char* text = nullptr;
            check((api_->*name)(session_, k, allocator_, &text), "its tensors");
            found.emplace_back(text);
            check(api_->AllocatorFree(allocator_, text), "its tensors");
        }
        return found;
    }

    OrtValue* value_of(Tensor& tensor) {
        OrtValue* value = nullptr;
        check(api_->CreateTensorWithDataAsOrtValue(memory_, tensor.data.get(), tensor.bytes, tensor.shape.data(), tensor.shape.size(), tensor.type->code, &value), "tensor " + tensor.name);
        return value;
    }

    // Inputs and outputs stay where they are for all runs; the outputs' shapes are those of a first run.
    void bind() {
        check(api_->GetAllocatorWithDefaultOptions(&allocator_), "memory");
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_), "memory");
        std::vector<std::string> takes = session_names(&OrtApi::SessionGetInputCount, &OrtApi::SessionGetInputName);
        const std::vector<std::string> gives = session_names(&OrtApi::SessionGetOutputCount, &OrtApi::SessionGetOutputName);
        std::vector<std::string> given;
        for (const Tensor& input : inputs_) given.push_back(input.name);
        std::sort(given.begin(), given.end());
        std::sort(takes.begin(), takes.end());
        if (given != takes) throw Refused("job: inputs are " + joined(given) + "; the graph takes " + joined(takes));
        std::vector<std::string> wanted = names(params_, "outputs");
        if (wanted.empty()) wanted = gives;
        for (const std::string& name : wanted)
            if (std::find(gives.begin(), gives.end(), name) == gives.end()) throw Refused("job: outputs names " + name + "; the graph gives " + joined(gives));

        prepare(0);
        std::vector<const char*> input_names, output_names;
        std::vector<const OrtValue*> input_values;
        for (Tensor& input : inputs_) {
            input.value = value_of(input);
            input_names.push_back(input.name.c_str());
            input_values.push_back(input.value);
        }
        for (const std::string& name : wanted) output_names.push_back(name.c_str());
        std::vector<OrtValue*> found(wanted.size(), nullptr);
        check(api_->Run(session_, nullptr, input_names.data(), input_values.data(), input_values.size(), output_names.data(), output_names.size(), found.data()), "a first run");
        check(api_->CreateIoBinding(session_, &binding_), "binding");
        for (const Tensor& input : inputs_) check(api_->BindInput(binding_, input.name.c_str(), input.value), "input " + input.name);
        for (std::size_t k = 0; k < wanted.size(); ++k) {
            Tensor output = like(wanted[k], found[k]);
            api_->ReleaseValue(found[k]);
            output.value = value_of(output);
            check(api_->BindOutput(binding_, output.name.c_str(), output.value), "output " + output.name);
            outputs_.push_back(std::move(output));
        }
    }

    // A tensor of the type and shape of `value`.
    Tensor like(const std::string& name, OrtValue* value) {
        OrtTensorTypeAndShapeInfo* about = nullptr;
        check(api_->GetTensorTypeAndShape(value, &about), "output " + name + ", which is no tensor");
        ONNXTensorElementDataType code{};
        std::size_t rank = 0;
        check(api_->GetTensorElementType(about, &code), "output " + name);
        check(api_->GetDimensionsCount(about, &rank), "output " + name);
        Tensor tensor;
        tensor.name = name;
        tensor.shape.resize(rank);
        check(api_->GetDimensions(about, tensor.shape.data(), rank), "output " + name);
        api_->ReleaseTensorTypeAndShapeInfo(about);
        const auto known = std::find_if(std::begin(types), std::end(types), [&](const Type& one) { return code == one.code; });
        if (known == std::end(types)) throw Refused("output " + name + " has elements of kind " + std::to_string(code) + ", which is not saved here; name the outputs wanted");
        tensor.type = known;
        tensor.allocate();
        return tensor;
    }

    void infer() {
        if (asked_ == cpu) return check(api_->RunWithBinding(session_, nullptr, binding_), "a run");
        // One that computes in memory of its own copies an input when it is bound, and not again.
        for (const Tensor& input : inputs_) check(api_->BindInput(binding_, input.name.c_str(), input.value), "input " + input.name);
        check(api_->SynchronizeBoundInputs(binding_), "a run");
        check(api_->RunWithBinding(session_, nullptr, binding_), "a run");
        check(api_->SynchronizeBoundOutputs(binding_), "a run");
    }

    // Where the nodes ran in a run that is profiled, as facts; ends the profiling. A part of the graph that a provider
    // runs as one is counted as one node; copies between the memories of two providers are told apart.
    json::Object placed() {
        infer();
        char* path = nullptr;
        check(api_->SessionEndProfiling(session_, allocator_, &path), "profiling");
        std::ifstream file(path);
        std::stringstream content;
        content << file.rdbuf();
        unlink(path);
        check(api_->AllocatorFree(allocator_, path), "profiling");
        std::set<std::array<std::string, 4>> ran;
        const std::string end = "_kernel_time";
        for (const json::Value& event : json::parsed(content.str()).items) {
            const std::string& name = event["name"].text;
            if (event["cat"].text != "Node" || name.size() < end.size() || name.compare(name.size() - end.size(), end.size(), end) != 0) continue;
            const json::Value& about = event["args"];
            const json::Value& index = about["node_index"];
            ran.insert({name, index.is_number() ? std::to_string(index.integer) : index.text, about["op_name"].text, about["provider"].text});
        }
        std::map<std::string, int64_t> nodes, elsewhere;
        int64_t all = 0, not_asked = 0;
        for (const auto& [name, index, op, where] : ran) {
            if (op.rfind("Memcpy", 0) == 0) continue;
            ++all;
            ++nodes[where];
            if (where != asked_) ++not_asked, ++elsewhere[op];
        }
        if (!all) throw std::runtime_error("onnxruntime " + version_ + " does not tell in its profile where the nodes ran");
        std::vector<std::pair<std::string, int64_t>> by_number(nodes.begin(), nodes.end()), ops(elsewhere.begin(), elsewhere.end());
        const auto is_more = [](const auto& a, const auto& b) { return a.second > b.second; };
        std::stable_sort(by_number.begin(), by_number.end(), is_more);
        std::stable_sort(ops.begin(), ops.end(), is_more);
        json::Object told;
        std::vector<std::string> fallback;
        for (const auto& [where, n] : by_number) told.add(where, n);
        for (std::size_t k = 0; k < std::min(ops.size(), most_fallback_ops); ++k) fallback.push_back(ops[k].first);
        return json::Object()
            .add("provider_used", nodes[asked_] ? asked_ : by_number[0].first)
            .raw("nodes", told.str())
            .add("fallback_share", static_cast<double>(not_asked) / static_cast<double>(all))
            .add("fallback_ops", fallback)
            .add("copies", static_cast<int64_t>(ran.size()) - all);
    }

    // The graph and the weights it points to.
    static int64_t model_bytes(const std::filesystem::path& model) {
        int64_t bytes = 0;
        std::error_code error;
        for (const auto& path : {model, model.parent_path() / "weights.safetensors"}) {
            const auto size = std::filesystem::file_size(path, error);
            if (!error) bytes += static_cast<int64_t>(size);
        }
        return bytes;
    }

    static std::string joined(const std::vector<std::string>& words) {
        std::string all;
        for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
        return all.empty() ? "none" : all;
    }

    std::string file_of(const Tensor& output) const { return "output-" + std::to_string(&output - outputs_.data()) + ".bin"; }

    const json::Value& params_;
    int64_t item_count_, at_ = -1;
    std::filesystem::path scratch_;
    std::string phase_, version_, asked_;
    int threads_ = 0;
    std::vector<std::pair<std::string, std::string>> options_;
    std::vector<Tensor> inputs_, outputs_;
    std::vector<std::string> kept_;
    void* library_ = nullptr;  // never closed: its threads go on
    const OrtApi* api_ = nullptr;
    OrtEnv* env_ = nullptr;
    OrtSession* session_ = nullptr;
    OrtIoBinding* binding_ = nullptr;
    OrtAllocator* allocator_ = nullptr;
    OrtMemoryInfo* memory_ = nullptr;
};

[[maybe_unused]] const bool is_known = add_runner("native:onnxruntime", [](const Setting& setting) { return std::make_unique<OnnxRuntime>(setting); });

}  // namespace
}  // namespace edgewatt

#endif
