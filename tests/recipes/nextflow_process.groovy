/*
 * Evaluate a process of Nextflow with Groovy, the language that it is written in, and print it as JSON:
 *
 *     groovy nextflow_process.groovy MAIN.nf VALUES
 *
 * VALUES is JSON, what Nextflow would give: the inputs, moduleDir and task. Printed are the directives, the inputs, the
 * outputs, and the scripts of the sections script: and stub:.
 */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.time.Duration
import org.codehaus.groovy.ast.ClassNode
import org.codehaus.groovy.ast.CodeVisitorSupport
import org.codehaus.groovy.ast.Parameter
import org.codehaus.groovy.ast.expr.ArgumentListExpression
import org.codehaus.groovy.ast.expr.ClosureExpression
import org.codehaus.groovy.ast.expr.ConstantExpression
import org.codehaus.groovy.ast.expr.MethodCallExpression
import org.codehaus.groovy.ast.expr.VariableExpression
import org.codehaus.groovy.ast.stmt.BlockStatement
import org.codehaus.groovy.ast.stmt.ExpressionStatement
import org.codehaus.groovy.classgen.GeneratorContext
import org.codehaus.groovy.control.CompilePhase
import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.SourceUnit
import org.codehaus.groovy.control.customizers.CompilationCustomizer

/** Makes a closure of each labelled section of a process: section('script', { ... }). */
class Sections extends CompilationCustomizer {
    Sections() { super(CompilePhase.CONVERSION) }

    void call(SourceUnit source, GeneratorContext context, ClassNode node) {
        source.AST.statementBlock.visit(new CodeVisitorSupport() {
            void visitMethodCallExpression(MethodCallExpression call) {
                if (call.methodAsString == 'process') {
                    def body = call.arguments.expressions[0].arguments.expressions[-1]
                    body.code = divided(body.code.statements)
                }
            }
        })
    }

    static BlockStatement divided(List statements) {
        def block = new BlockStatement()
        BlockStatement section = null
        statements.each { statement ->
            def label = statement.statementLabels ? statement.statementLabels[0] : null
            if (label != null) {
                section = new BlockStatement()
                def closure = new ClosureExpression(Parameter.EMPTY_ARRAY, section)
                def words = new ArgumentListExpression(new ConstantExpression(label), closure)
                block.addStatement(new ExpressionStatement(
                    new MethodCallExpression(VariableExpression.THIS_EXPRESSION, 'section', words)))
            }
            (section ?: block).addStatement(statement)
        }
        block
    }
}

/** What the names in a process mean. */
class Context {
    Map values
    Map result = [directives: [:], input: [], output: [], script: null, stub: null, when: null]
    Map sections = [:]
    String current

    void section(String name, Closure body) { sections[name] = body }

    def getProperty(String name) {
        if (name in ['values', 'result', 'sections', 'current']) return this.@"$name"
        // An input is declared by its name, and so is what an output hands on.
        if (current == 'input' || current == 'output' && !(values[name] instanceof CharSequence)) return name
        if (values.containsKey(name)) return values[name]
        throw new MissingPropertyException(name, Context)
    }

    void setProperty(String name, Object value) {
        if (name == 'current' || name == 'values') this.@"$name" = value
        else values[name] = value
    }

    def invokeMethod(String name, Object words) {
        def options = words.find { it instanceof Map } ?: [:]
        def parts = words.findAll { !(it instanceof Map) }
        if (!(current in ['input', 'output'])) {
            result.directives.get(name, []) << parts[0].toString()
            return null
        }
        if (name == 'tuple') parts.each { result[current].pop() }  // they came as if they stood alone
        def text = name == 'tuple' ? parts*.text.join(', ') : "$name ${parts[0]}".toString()
        result[current] << [text: text] + options.collectEntries { key, value -> [key, value.toString()] }
        new Declared(text: text)
    }
}

/** An input or output, val or path, as it is written. */
class Declared { String text }

def values = new JsonSlurper().parseText(args[1])
values.task.time = values.task.seconds ? Duration.ofSeconds(values.task.seconds) : null
def context = new Context(values: values)
def configuration = new CompilerConfiguration()
configuration.addCompilationCustomizers(new Sections())
def script = new GroovyShell(configuration).parse(new File(args[0]))
script.metaClass.methodMissing = { String name, words -> [name, words[0]] }
script.metaClass.process = { List named ->
    context.result.name = named[0]
    def body = named[1]
    body.delegate = context
    body.resolveStrategy = Closure.DELEGATE_FIRST
    body()
    ['script', 'stub', 'when', 'input', 'output'].each { name ->
        def section = context.sections[name]
        if (section) {
            context.current = name
            section.delegate = context
            section.resolveStrategy = Closure.DELEGATE_FIRST
            def value = section()
            if (name in ['script', 'stub']) context.result[name] = value.toString().stripIndent()
            if (name == 'when') context.result.when = value as boolean
        }
    }
}
script.run()
println JsonOutput.toJson(context.result)
