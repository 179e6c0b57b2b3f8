// Feeds the native agent's rule of steadiness: lines "LATENCY_S HEAT" in, whether it is reached and its detail out.

#include <cstdlib>
#include <iostream>

#include "steady.hpp"

int main(int, char** argv) {
    edgewatt::Steady rule(0.02, std::atoi(argv[1]), {{"heat", 1.0}, {"none", 1.0}});
    for (double latency_s, heat; std::cin >> latency_s >> heat;) {
        rule.add(latency_s, {heat, std::nullopt});
        std::cout << rule.is_reached() << " " << rule.detail() << "\n";
    }
}
