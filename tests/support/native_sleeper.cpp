// The runner of fake_runner.py for the native agent: built into the agent that is tested, and into no other.

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>

#include "run.hpp"

namespace {

using edgewatt::Marks;

void sleep_s(double seconds) {
    timespec left{static_cast<time_t>(seconds), static_cast<long>(std::fmod(seconds, 1.0) * 1e9)};
    while (nanosleep(&left, &left)) {}
}

// Items of two phases, `first_s` and `second_s` long; `fault` names what goes wrong at item `fault_at`.
class Sleeper : public edgewatt::Runner {
public:
    explicit Sleeper(const edgewatt::Setting& setting) : params_(setting.params), scratch_(setting.scratch) {}

    json::Object load() override {
        if (params_["child"].is_set()) {  // one that ignores being asked to end
            const pid_t pid = fork();
            if (pid == 0) {
                signal(SIGTERM, SIG_IGN);
                execlp("sleep", "sleep", "600", static_cast<char*>(nullptr));
                _exit(127);
            }
            std::ofstream(params_["child"].text) << pid;
        }
        if (is_fault("load")) fault();
        std::printf("a library that talks on stdout\n");
        std::fflush(stdout);
        if (std::system("echo and a child of its")) std::abort();
        return json::Object().add("engine", "sleeper");
    }

    void run(int64_t item, Marks& mark) override {
        mark("first");
        sleep_s(edgewatt::number(params_, "first_s", 0.002));
        if (params_["fault_at"].text.empty() && params_["fault_at"].integer == item) fault();
        if (params_["fault"].text != "no mark") mark("second");
        sleep_s(edgewatt::number(params_, "second_s", 0.001));
    }

    void run_phase(const std::string& phase, int64_t) override { sleep_s(edgewatt::number(params_, (phase + "_s").c_str(), 0)); }

    void keep(int64_t item) override { kept_ += std::to_string(item) + " " + std::to_string(item) + "\n"; }

    void save() override {
        std::ofstream(scratch_ / "outputs.txt") << kept_;
        if (is_fault("save")) fault();
    }

private:
    bool is_fault(const char* at) const { return params_["fault_at"].text == at; }

    void fault() {
        const std::string& fault = params_["fault"].text;
        if (fault == "abort") std::abort();
        if (fault == "segfault") *const_cast<volatile int*>(static_cast<int*>(nullptr)) = 0;
        if (fault == "killed") kill(getpid(), SIGKILL);
        if (fault == "raise") throw std::runtime_error("the picture\nis upside down");
        if (fault == "bad_alloc") throw std::runtime_error("ONNXRuntimeError: std::bad_alloc");
        if (fault == "no memory") throw std::bad_alloc();
        if (fault == "chatter")
            while (true) std::fprintf(stderr, "%4096d\n", 0);
        while (fault == "hang") sleep_s(0.01);
    }

    const json::Value& params_;
    std::filesystem::path scratch_;
    std::string kept_;
};

[[maybe_unused]] const bool is_known = edgewatt::add_runner("native:sleep", [](const edgewatt::Setting& setting) { return std::make_unique<Sleeper>(setting); });

}  // namespace
